"""Smaller copies of a scene's textures, made once and kept in the cache folder.

LIBERO ships photographs of up to 4096 pixels for surfaces that cover a few dozen pixels of a frame:
they are most of a scene's construction time and half of its memory.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from PIL import Image

from vlarl_env.simulators.libero.kept_files import identity, put_in_place

TEXTURE_CAP = 512
"""Longest side in pixels that is kept."""

_TEXTURE_FILE = re.compile(r'(<texture\b[^>]*?\bfile=")([^"]+\.png)(")')


def cap_textures(xml: str, cache: Path) -> str:
    """The scene with every larger texture replaced by a copy of at most `TEXTURE_CAP` pixels."""
    folder = cache / f"textures-{TEXTURE_CAP}"
    folder.mkdir(parents=True, exist_ok=True)

    def replace(match: re.Match[str]) -> str:
        return match[1] + str(_capped(Path(match[2]), folder)) + match[3]

    return _TEXTURE_FILE.sub(replace, xml)


def _capped(source: Path, folder: Path) -> Path:
    target = folder / f"{hashlib.sha256(identity(source).encode()).hexdigest()[:24]}.png"
    if target.exists():
        return target
    with Image.open(source) as image:
        if max(image.size) <= TEXTURE_CAP:
            return source
        scale = TEXTURE_CAP / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smaller = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    with put_in_place(target) as file:
        smaller.save(file, format="PNG")
    return target
