"""What tailspan knows of your services, and what they answer themselves, as tools for an MCP client such as Claude."""
