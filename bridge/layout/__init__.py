"""What the bytes of keys and values mean: fields, decoding, schemas, text for people."""
