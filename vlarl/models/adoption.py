"""Other people's folders as checkpoints: which policy family one is of, and what makes it one."""

from __future__ import annotations

from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.models.openvla.adoption import Adoption, is_adapter
from vlarl.models.openvla.adoption import find_adoption as find_plain
from vlarl.models.openvla.oft import (
    OPENVLA,
    OPENVLA_OFT,
    oft_heads,
    oft_sign,
    oft_sign_of_adapter,
)
from vlarl.models.openvla_oft.adoption import AskedFamily, find_chunked_adoption
from vlarl.models.registry import check_family_name, is_openvla
from vlarl.weights.folder import read_json
from vlarl.weights.whereabouts import ADAPTER_CONFIG, missing_folder


def find_adoption(source: Path, base: Path | None, asked: AskedFamily) -> Adoption:
    """What can be made of a folder.

    Args:
        source: folder of weights that can't be loaded as they are, or of an adapter.
        base: folder of the model that the adapter belongs to.
        asked: how an OpenVLA-OFT is used, as far as the command says so.

    Raises:
        ConfigError, CheckpointError: nothing, or nothing needs to be done; the message says why.
    """
    if not source.is_dir():
        raise ConfigError(missing_folder(source))
    families = {one: check_family_name(one) for one in (source, base) if one is not None}
    for folder, family in families.items():
        if family not in (OPENVLA, OPENVLA_OFT):
            if asked:
                raise ConfigError(
                    f"{folder} is of the family {family}, and --chunk, --convention, --camera and "
                    "--proprio are OpenVLA-OFT's: leave them out"
                )
            return find_plain(source, base)
    if asked or OPENVLA_OFT in families.values() or _is_oft(source):
        return find_chunked_adoption(source, base, asked)
    return find_plain(source, base)


def _is_oft(source: Path) -> bool:
    config = source / "config.json"
    if is_adapter(source):
        named = source / ADAPTER_CONFIG
        return bool(oft_sign_of_adapter(source, read_json(named) if named.exists() else {}))
    if config.exists() and is_openvla(source):
        return bool(oft_sign(source, read_json(config)))
    return bool(oft_heads(source))
