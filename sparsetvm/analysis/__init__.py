"""Pure questions about a model: which weights are pruned, how, what it can gain; and pruning for what-if questions."""
