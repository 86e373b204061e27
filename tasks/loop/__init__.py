"""The self-training loop: splits, candidates, thresholds, selection, gate, champion."""
