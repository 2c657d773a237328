"""What makes a step fast; each part has its plain way as reference in the tests."""
