"""Growing any network in place without changing what it computes, with a certificate of that."""
