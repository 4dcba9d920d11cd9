"""What a job leaves: manifest, card, bundle, runner."""
