"""What every other folder uses: embeddings, errors, atomic files, images, the Hub."""
