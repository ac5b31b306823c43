#include "guest/protocol/guest_errors.h"

#include <fmt/format.h>

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace lamina::guest {
namespace {

constexpr size_t kMaxBytes = 512;
constexpr std::string_view kCut = "...";

class Checked : public ttrpc::Caller {
 public:
  explicit Checked(std::unique_ptr<ttrpc::Caller> agent) : agent_(std::move(agent)) {}
  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout,
                    const std::map<std::string, std::string>& metadata) override {
    return GuestError(agent_->Call(service, method, request, response, timeout, metadata));
  }
  void CancelCalls() override { agent_->CancelCalls(); }
  bool connected() const override { return agent_->connected(); }

 private:
  const std::unique_ptr<ttrpc::Caller> agent_;
};

}  // namespace

absl::Status GuestError(const absl::Status& status) {
  if (status.ok()) return status;
  const absl::string_view said = status.message();
  std::string text;
  for (const char c : said) {
    const bool plain = c >= 0x20 && c < 0x7f;
    const std::string next =
        plain ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    if (text.size() + next.size() + kCut.size() > kMaxBytes) {
      text += kCut;
      break;
    }
    text += next;
  }
  return absl::Status(status.code(), text);
}

std::unique_ptr<ttrpc::Caller> WithGuestErrors(std::unique_ptr<ttrpc::Caller> agent) {
  return std::make_unique<Checked>(std::move(agent));
}

}  // namespace lamina::guest
