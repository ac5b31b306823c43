#include "tests/e2e/support.h"

namespace lamina::e2e {
const char* const kTestHandler = "runc";
}  // namespace lamina::e2e
