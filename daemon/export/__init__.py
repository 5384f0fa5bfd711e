"""Reading exports: bytes in, conversations out; nothing here knows about jobs or models."""
