"""Images and masks: official ISIC folders, a user's own, synthetic lesions; reading, splits, transforms, audit."""
