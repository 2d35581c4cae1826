"""GRPO for vision-language models, by TRL: groups of answers to one question, each judged against the others.

The trainer is TRL's `GRPOTrainer`; ours is what stands before it.
"""
