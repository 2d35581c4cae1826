"""PPO for vision-language models: the policy answers questions about images and learns from the rewards."""
