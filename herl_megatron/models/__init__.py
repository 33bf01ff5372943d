"""What a Hugging Face model is made of, and how its tensors make up Megatron-Core's."""
