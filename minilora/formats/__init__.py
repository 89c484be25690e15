"""Files: PEFT's adapters, the base they were made on, bitsandbytes' four bits."""
