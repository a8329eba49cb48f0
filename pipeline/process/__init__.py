"""This process and its temporary folders: private files, no core dumps."""
