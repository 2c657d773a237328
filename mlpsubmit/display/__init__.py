"""How things look, in a line of text or in HTML: takes plain values and knows no run."""
