"""Data loading, activation checkpointing and model summaries."""
