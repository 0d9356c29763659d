"""What losses see: trees of tokens, masked statistics, KL, aggregation."""
