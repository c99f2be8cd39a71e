#include <vector>
#include <cstdlib>
int main() {
    std::vector<int> empty;
    if (empty.empty()) std::abort();
    return empty[0];
}
