#include "tests/e2e/support.h"

#include <set>
#include <sstream>

namespace lamina::e2e {
namespace {

std::unique_ptr<Node> node;
std::unique_ptr<ImageKit> images;
std::set<std::string> imported;

// Shows the daemons' logs of a failed test once, when it has ended.
class LogPrinter : public ::testing::EmptyTestEventListener {
  void OnTestEnd(const ::testing::TestInfo& info) override {
    if (info.result()->Failed() && node != nullptr) printf("%s\n", node->LogTails(25).c_str());
  }
};

class NodeEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    auto kit = ImageKit::Create(CacheDir(), ProbePath());
    ASSERT_OK(kit.status());
    images = std::make_unique<ImageKit>(std::move(*kit));
    NodeOptions options;
    options.handler = kTestHandler;
    options.laminad = IsLamina();
    if (IsLamina()) {
      ASSERT_OK(LaminaIsBuilt());
    }
    auto started = Node::Start(options);
    ASSERT_OK(started.status());
    node = std::move(*started);
    ASSERT_OK(NeedImage(kPauseImage));
    ASSERT_OK(NeedImage(kBusyboxImage));
    ::testing::UnitTest::GetInstance()->listeners().Append(new LogPrinter);
  }
  void TearDown() override {
    if (node == nullptr) return;
    const absl::Status stopped = node->Stop();
    EXPECT_OK(stopped);
    node.reset();
  }
};

[[maybe_unused]] const auto* const environment = ::testing::AddGlobalTestEnvironment(new NodeEnvironment);

}  // namespace

Node& TestNode() { return *node; }
const ImageKit& Images() { return *images; }

absl::Status NeedImage(const std::string& name) {
  if (imported.count(name) != 0) return absl::OkStatus();
  Image image;
  if (name == kPauseImage) image = images->Pause();
  if (name == kBusyboxImage) image = images->Busybox();
  if (name == kOddImage) image = images->Odd();
  if (name == kBigImage) image = images->Big();
  if (name == kNginxImage) {
    ASSIGN_OR_RETURN(image, images->Nginx());
  }
  if (image.name != name) return InvalidArgument("no image is called {}", name);
  RETURN_IF_ERROR(node->Import(image));
  imported.insert(name);
  return absl::OkStatus();
}

absl::StatusOr<ScopedPod> ScopedPod::Run(const PodSpec& spec) {
  ScopedPod pod;
  ASSIGN_OR_RETURN(pod.id_, Cri().RunPod(spec));
  return pod;
}
absl::Status ScopedPod::Remove() {
  if (id_.empty()) return absl::OkStatus();
  return Cri().RemovePod(std::exchange(id_, ""));
}
ScopedPod::~ScopedPod() { EXPECT_OK(Remove()); }

std::string SharedPodTest::pod_;
std::string SharedPodTest::container_;

void SharedPodTest::SetUpTestSuite() {
  PodSpec spec;
  spec.name = "shared";
  ASSERT_OK_AND_ASSIGN(pod_, Cri().RunPod(spec));
  ASSERT_OK_AND_ASSIGN(container_, Cri().RunContainer(pod_, Sleeper()));
}

void SharedPodTest::TearDownTestSuite() {
  if (!pod_.empty()) {
    EXPECT_OK(Cri().RemovePod(pod_));
  }
  pod_.clear();
  container_.clear();
}

void SharedPodTest::SetUp() { ASSERT_FALSE(container_.empty()) << "the suite's pod did not start"; }

std::string SharedPodTest::Shell(const std::string& command) {
  auto out = ShellIn(container_, command);
  EXPECT_OK(out.status());
  return out.ok() ? *out : "";
}

absl::StatusOr<SharedPodTest::Finished> SharedPodTest::RunToEnd(ContainerSpec spec) {
  ASSIGN_OR_RETURN(const std::string id, Cri().RunContainer(pod_, spec));
  Finished finished;
  ASSIGN_OR_RETURN(finished.info, Cri().WaitForExit(id, In(std::chrono::seconds(40))));
  RETURN_IF_ERROR(TestNode().WaitLogComplete(finished.info.log_path, In(std::chrono::seconds(10))));
  ASSIGN_OR_RETURN(finished.out, Cri().LogText(id, "stdout"));
  ASSIGN_OR_RETURN(finished.err, Cri().LogText(id, "stderr"));
  RETURN_IF_ERROR(Cri().RemoveContainer(id));
  return finished;
}

ContainerSpec Sleeper(const std::string& name) {
  ContainerSpec spec;
  spec.name = name;
  spec.command = {"sleep", "1000000"};
  return spec;
}

ContainerSpec ShellContainer(const std::string& name, const std::string& script) {
  ContainerSpec spec;
  spec.name = name;
  spec.command = {"sh", "-c", script};
  return spec;
}

absl::StatusOr<std::string> ShellIn(const std::string& container, const std::string& command) {
  ASSIGN_OR_RETURN(const ExecResult result, Cri().ExecSync(container, {"sh", "-c", command}));
  if (result.exit_code != 0) {
    return MakeStatus(absl::StatusCode::kInternal, "`{}` exited with {}: {}{}", command, result.exit_code,
                      result.out, result.err);
  }
  return result.out;
}

std::string Trim(std::string text) {
  while (!text.empty() && isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  const size_t start = text.find_first_not_of(" \t\n");
  return start == std::string::npos ? "" : text.substr(start);
}

std::vector<std::string> SplitLines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

double Metric(const std::string& page, const std::string& sample) {
  for (const std::string& line : SplitLines(page)) {
    if (line.rfind(sample + " ", 0) == 0) return std::stod(line.substr(sample.size() + 1));
  }
  return -1;
}

}  // namespace lamina::e2e
