"""What share.py does: runs to the Hugging Face Hub and back, without a file that can run code."""
