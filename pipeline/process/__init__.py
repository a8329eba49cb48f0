"""Process settings: private files, no core dumps, temporary folders."""
