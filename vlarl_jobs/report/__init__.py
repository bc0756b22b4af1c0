"""`vlarl report`: run folders in, one self-contained page and its pictures out.

    lines ──▶ records ──▶ run_folder ──▶ groups ──▶ figures/ ──▶ page
    JSON      typed       a run          of runs    pictures     HTML

It reads files and starts nothing: neither torch nor a service is needed.
"""
