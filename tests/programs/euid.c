// Succeeds for root.
#include <unistd.h>

int main(void) { return geteuid() == 0 ? 0 : 1; }
