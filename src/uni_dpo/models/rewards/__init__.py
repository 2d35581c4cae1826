"""Models that say how good an answer is, as a whole or step by step."""
