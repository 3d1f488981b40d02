"""What parity is made of: the sides that answer, the rows they are asked, and what is measured."""
