"""What `flowstone serve` answers over HTTP: signals, the page of an approval, and its health."""
