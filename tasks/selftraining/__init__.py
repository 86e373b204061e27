"""The self-training loop's data and decisions: label sets, splits, thresholds, selection, lineage, gate, champion."""
