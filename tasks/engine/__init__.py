"""Shards through workers: pipeline, pool, dispatch."""
