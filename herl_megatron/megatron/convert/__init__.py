"""Between Hugging Face folders and Megatron's checkpoints, tensor by tensor."""
