// The kernels on a CPU: one thread, plain loops. A step touches a few hundred numbers; threads would cost more.
#include "elements.h"

namespace vm {

template <class Element>
int launch(int64_t rows, int64_t columns, const Element& element, void*) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column) element(row, column);
    return VM_OK;
}

inline bool inside(const int64_t* positions, int64_t n, int64_t size) {
    for (int64_t i = 0; i < n; ++i)
        if (positions[i] < 0 || positions[i] >= size) return false;
    return true;
}

}  // namespace vm

#include "entries.h"
