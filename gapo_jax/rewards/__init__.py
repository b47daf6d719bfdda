"""What a response is worth: scores of the reward sources, and the reward made of them."""
