"""The stages of ferry, from the official files of a data set to a bundle that is deployed."""
