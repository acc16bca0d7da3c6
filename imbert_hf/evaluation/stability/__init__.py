"""What a small change becomes on its way through the layers: `imbert-eval stability`."""
