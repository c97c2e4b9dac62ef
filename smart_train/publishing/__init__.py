"""What publish.py is made of: what goes up, what may not, the card, the Hub."""
