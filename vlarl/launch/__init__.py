"""The whole stack as processes of one machine: what `vlarl up` and `make train` run."""
