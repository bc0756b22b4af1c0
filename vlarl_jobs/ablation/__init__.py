"""`vlarl ablate`: variants of a run, times seeds, one after the other, and a table of them.

    plan ──▶ series ──▶ run folders ──▶ numbers ──▶ table
    of runs  `vlarl up`                 by variant  terminal, table.json, table.md
             one by one

Run folders are read as `vlarl report` reads them. Nothing here needs torch: every run is a process.
"""
