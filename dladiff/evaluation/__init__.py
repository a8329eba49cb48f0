"""What a thief gets out of protected photos: attackers, preprocessing, metrics, tables."""
