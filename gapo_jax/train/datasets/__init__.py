"""What a run learns from: self-generated pairs, or a user's rows."""
