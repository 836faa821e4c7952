"""What tasks are made of: losses, architectures, and stacks of networks side by side."""
