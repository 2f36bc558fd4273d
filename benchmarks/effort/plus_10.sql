UPDATE effort SET steps = steps * 1.1;
