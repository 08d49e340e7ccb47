"""What the user writes and what programs read: definitions and documents, validated by pydantic."""
