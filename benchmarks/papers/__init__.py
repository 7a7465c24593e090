"""The claims of the papers that the library starts from, measured again: one module for each."""
