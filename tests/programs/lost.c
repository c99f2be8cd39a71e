// To be linked with a loader that doesn't exist.
int main(void) { return 0; }
