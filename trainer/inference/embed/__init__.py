"""The command ``python -m trainer.embed``: sequences, regions and genomes as vectors."""
