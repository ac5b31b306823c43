// Text of others (a guest, a peer) as one line that logs, terminals and protobuf strings can take.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lamina {

// At most `limit` bytes (at least 3), ending in "..." where it was cut. Only printable ASCII is left as it
// is: the rest, UTF-8 too, becomes \n, \t or \xNN.
std::string Printable(std::string_view text, size_t limit);

}  // namespace lamina
