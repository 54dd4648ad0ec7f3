"""One module per command: its parser and `main(argv) -> int`."""
