"""One function per command of the command line, without its flags; a session is opened here and handed to the stages."""
