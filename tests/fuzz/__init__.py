"""The fuzz campaign: every file that a stranger can give is damaged in every way, and must do no harm.

    python -m tests.fuzz                    mutants, kills and threads, one after the other
    python -m tests.fuzz mutants --kind K   damaged files of one kind
    python -m tests.fuzz kills              writers that are killed at any moment
    python -m tests.fuzz threads            one retriever in many threads

The stages, in the order of a mutant's life: bases (whole files), mutations (what damages them), mutants (damaged files
in their places), targets (what reads them), kinds (which of these belong together), guard and workers (processes that
read mutants and are watched), table (the outcomes). Bases, mutations and targets of files that others publish are in
sources.
"""
