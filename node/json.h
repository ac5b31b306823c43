#pragma once

#include <string>

namespace google::protobuf {
class Message;
}

namespace lamina::node {

// A message as JSON text with its own field names; 64-bit numbers stay numbers. Fields without a value are
// there with their default. ASCII: other characters of a text are \u escapes, bytes that are no UTF-8 become
// U+FFFD.
std::string ToJson(const google::protobuf::Message& message);

}  // namespace lamina::node
